"""Networks whose memory is the weights of a small network, learned while the sequence is read."""
