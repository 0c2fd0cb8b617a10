"""One open stream, its bytes, and the HTTP protocol beneath: limits, the calls it answers, the handover."""
