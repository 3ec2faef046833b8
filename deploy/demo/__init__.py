"""The demo: three simulated or given hospitals, one machine, every real part."""
