"""Readers of media files: what a file is, and its pixels, samples or text; whatever is wrong is one DataError."""

from accordion.data.media.audio import read_audio, resample
from accordion.data.media.image import read_image
from accordion.data.media.kinds import Kind, kind_of
from accordion.data.media.text import read_text
from accordion.data.media.video import read_video, video_frames

__all__ = ["Kind", "kind_of", "read_audio", "read_image", "read_text", "read_video", "resample", "video_frames"]
