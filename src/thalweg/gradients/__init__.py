"""What else a backward pass knows: products with curvature, spectra, norms of single examples, factors, checks."""
