"""What computes: one module per library, behind the seam in `base`."""
