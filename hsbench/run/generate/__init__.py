"""What a user feels: time per token of a model that generates, by each way to keep its K and V."""
