"""What a reinforced dataset is on disk: `reinforcement.json`, the shards and the pixel contract."""
