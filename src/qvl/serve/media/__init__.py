"""Media of requests: fetched, checked and decoded apart from the server, in processes that may die."""
