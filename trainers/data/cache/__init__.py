"""The node-local cache of decoded shards."""
