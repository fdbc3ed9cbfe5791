"""What a gateway costs: a mock engine and a load client in C++, and the gateways compared."""
