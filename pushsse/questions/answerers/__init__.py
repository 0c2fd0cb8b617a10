"""What answers questions: chosen by PUSHSSE_ANSWERER, one module each, behind the protocol in `base`."""
