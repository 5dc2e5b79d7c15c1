"""What HSTU 2.0 is compared with: other sequence encoders between the same tokens and the same heads."""
