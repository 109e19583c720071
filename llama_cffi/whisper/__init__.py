"""Speech to text with whisper.cpp, through any prebuilt libwhisper.

from llama_cffi.whisper import Whisper

with Whisper("ggml-base.bin") as whisper:
    for segment in whisper.transcribe("speech.wav").segments:
        print(f"{segment.start_s:6.2f} {segment.text}")
"""

from .transcript import Segment, Token, Transcript
from .whisper import Whisper

__all__ = ["Segment", "Token", "Transcript", "Whisper"]
