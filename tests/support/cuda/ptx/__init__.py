"""An interpreter of PTX: what NVRTC made of a kernel runs on a processor, every access checked.

parsing.py reads the text; values.py holds registers, of all threads at once; elementwise.py,
accesses.py and warps.py are the instructions, as tables; memory.py and shared.py are what they read
and write, copies.py what comes later; machine.py lets blocks run; device.py launches calls. An
instruction that no table has is an error that names it.
"""
