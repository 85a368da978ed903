"""The final model of a run, uploaded to a repository of the hub."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from distilllens.errors import one_line
from distilllens.marks import RUN_FILE
from distilllens.train import final_model
from distilllens.train.config import DistillLensConfig

_OF_UPLOADS = ("hub_model_id", "hub_private_repo", "hub_revision")
_NOT_UPLOADED = {"trainer_state.json", "training_args.bin"}  # of the run, not of the model


class Hub:
    """Where the final model of a run goes: a repository that is found or made at once.

    Making it needs the network and a token: better before the training than after it.

    Raises:
        ValueError: no repository, with the reason of the hub.
    """

    def __init__(self, args: DistillLensConfig):
        self.args = args
        self.api = HfApi(token=args.hub_token)
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        try:
            found = self.api.create_repo(name, private=args.hub_private_repo, exist_ok=True)
        except Exception as error:  # of the hub's client, of the network, of a missing token
            answered = isinstance(error, HfHubHTTPError | LocalTokenNotFoundError)
            hint = "hub_model_id names the repository, and HF_TOKEN or `hf auth login` the token"
            raise ValueError(
                f"push_to_hub: {constants.ENDPOINT} gave no repository {name}: {_reason(error)}"
                + (f"; {hint}" if answered else "")
            ) from error
        self.repository = found.repo_id
        if args.hub_revision is not None:
            self._make_branch(args.hub_revision)

    def _make_branch(self, name):
        try:
            self.api.create_branch(self.repository, branch=name, exist_ok=True)
        except Exception as error:
            raise ValueError(
                f"hub_revision {name}: no such branch of {self.repository}: {_reason(error)}"
            ) from error

    def upload(self) -> str:
        """Upload what is not there yet; returns a line on it.

        Raises:
            ValueError: the hub did not take it. The model is in its folder.
        """
        folder = Path(self.args.output_dir)
        names = [name for name in final_model.files_of(folder) if name not in _NOT_UPLOADED]
        if not names:
            raise ValueError(
                f"{folder} was not uploaded: its {RUN_FILE} does not say which files are the final "
                "model, as those of version 0.1.0 do not"
            )
        try:
            commit = self.api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                allow_patterns=[*names, "README.md"],
                commit_message="End of training",
                revision=self.args.hub_revision,
            )
        except Exception as error:
            raise ValueError(
                f"the final model is in {folder}, but was not uploaded to {self.repository}: "
                f"{_reason(error)}; the same command uploads it"
            ) from error
        return f"the final model is at {commit.commit_url}"


def hub_of(args: DistillLensConfig, given: Mapping[str, Any]) -> tuple[Hub | None, Any]:
    """The repository that a run asks for, and its arguments for a trainer that uploads nothing.

    transformers' own upload writes into the output_dir while it trains, and takes all that lies
    there. None in processes that do not write.

    Args:
        given: the fields that were set.

    Raises:
        ValueError: another hub_strategy than ``end``, or as ``Hub``.
    """
    if not args.push_to_hub:
        named = [name for name in _OF_UPLOADS if given.get(name) is not None]
        if named and "push_to_hub" not in given:
            raise ValueError(f"{named[0]} is set, and nothing is uploaded; set push_to_hub: true")
        return None, args
    strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    if "hub_strategy" in given and strategy != "end":
        raise ValueError(
            f"hub_strategy {strategy}: checkpoints are not uploaded, the final model is; leave it "
            "out or set end"
        )
    quiet = copy.copy(args)
    quiet.push_to_hub = False
    return Hub(args) if os.environ.get("RANK", "0") == "0" else None, quiet


def _reason(error):
    """An error and what caused it, on one line: the hub's client tells which file, then why."""
    text = one_line(error)
    why = "" if error.__cause__ is None else one_line(error.__cause__)
    return f"{text} ({why})" if why and why not in text else text
