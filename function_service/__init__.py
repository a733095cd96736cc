"""The registry of functions, the layer cache, the instance pool, the scaler and the engines."""
