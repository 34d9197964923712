"""One torch for all: a torchvision without its compiled operators must not stop the import of timm."""

import sys
import types

# torchvision built for another torch fails on a file that only registers operators nobody here calls.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
