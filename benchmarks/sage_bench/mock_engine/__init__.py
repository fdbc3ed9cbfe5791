"""An OpenAI-compatible server whose timing comes from the simulator's engines; faults on demand."""
