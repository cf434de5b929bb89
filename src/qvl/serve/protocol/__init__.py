"""What goes over the wire: requests and answers as OpenAI's API has them."""
