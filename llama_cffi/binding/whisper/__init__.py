"""whisper.cpp's C API: the library, and the objects of `llama_cffi.whisper` that own C memory."""
