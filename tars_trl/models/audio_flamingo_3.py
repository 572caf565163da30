"""Audio Flamingo 3."""

from . import SpeechLLM


class AudioFlamingo3(SpeechLLM):
    """Audio Flamingo 3 (`nvidia/audio-flamingo-3-hf`): 25 audio tokens a second, of ten minutes at most."""

    class_name = "AudioFlamingo3ForConditionalGeneration"
    decoder_layer_class = "Qwen2DecoderLayer"
    audio_tokens_per_second = 25.0
    whole_windows = True
    features = ("input_features", "input_features_mask")
    longest_clip = 600
