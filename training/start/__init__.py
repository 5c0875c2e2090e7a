"""How a student begins: from its teacher (SVD, shared basis), or grown from a smaller one."""
