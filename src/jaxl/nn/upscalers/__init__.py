"""Networks that enlarge pictures: [B, H, W, 3] in 0..1 -> float32, not clipped, `scale` times as large."""
