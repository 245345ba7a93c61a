"""The sampling core: noise schedules, schedulers as tables, per-image noise and the loop that runs them.

`schedule` reads a checkpoint's scheduler config, `tables` turns it into rows of coefficients (with NumPy alone),
`noise` draws each image's own random numbers, `loop` runs the rows on the device.
"""
