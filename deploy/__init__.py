"""How pushsse is deployed: nginx's configuration, the real parts around the nodes, and `make stack`."""
