"""A patch-only image, made and pushed without its base being pulled."""
