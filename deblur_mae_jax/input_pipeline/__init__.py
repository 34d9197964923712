"""From stored images to network inputs, inside the jitted step; 2-D and 3-D."""
