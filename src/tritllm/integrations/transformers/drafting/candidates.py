"""Candidates for transformers' assisted generation, from a `Draft`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.candidate_generator import CandidateGenerator

from tritllm.errors import TritError
from tritllm.integrations.transformers.drafting.session import Session

if TYPE_CHECKING:
    from tritllm.integrations.transformers.drafting.draft import Draft


class Candidates(CandidateGenerator):  # type: ignore[misc]
    """Drafts for one call of generate.

    transformers' loop asks for candidates, verifies them with the whole model in one forward and
    tells how many it kept: those that are its own choices, or, where it samples, as many as
    rejection sampling keeps (Leviathan et al., 2023), which leaves the distribution what it is.

    Raises TritError for a batch.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        input_ids: torch.Tensor,
        generation_config: Any,
        logits_processor: Any,
        model_kwargs: dict[str, Any],
    ) -> None:
        batch, self._prompt = input_ids.shape
        if batch > 1:
            raise TritError(f"draft: {batch} sequences at once; drafts are for one")
        self._draft, self._processor = draft, logits_processor
        self._samples = bool(generation_config.do_sample)
        self._length = generation_config.max_length
        end = generation_config.eos_token_id
        self._ends = {end} if isinstance(end, int) else set(end or ())
        own = model_kwargs["past_key_values"] if draft.other is None else None
        model = draft.model if draft.other is None else draft.other
        self._session = Session(model, own, model_kwargs, self._prompt, self._length)
        self._confidences: list[float] = []
        self._began = self._drafted = 0.0

    def get_candidates(
        self, input_ids: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """ids [1, L] -> [1, L + k], and logits [1, k, V] of the draft where tokens are sampled."""
        self._confidences = []
        self._began = time.perf_counter()
        ids, scores = input_ids, list[torch.Tensor]()
        room = self._length - input_ids.shape[1] - 1  # verification brings a token by itself
        # The prompt first: its verification is the prefill, which drafts would make wait.
        if room > 0 and input_ids.shape[1] > self._prompt and self._draft.pace.drafts_now():
            ids, scores = self._drafts(input_ids, room)
        self._drafted = time.perf_counter()
        return ids, torch.stack(scores, dim=1) if scores and self._samples else None

    def _drafts(
        self, input_ids: torch.Tensor, room: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        pace, session = self._draft.pace, self._session
        ids, reached = input_ids, 1.0
        scores, seconds = list[torch.Tensor](), list[float]()
        with self._draft.reading():
            while not scores or (len(scores) < room and pace.goes_on(len(scores), reached)):
                began, pending = time.perf_counter(), session.pending(ids)
                score = self._processor(ids, session.logits(ids).float().to(ids.device))
                token, confidence = self._chosen(score)
                ids = torch.cat([ids, token], dim=-1)
                scores.append(score)
                self._confidences.append(confidence)
                reached *= pace.acceptance.of(confidence)
                if pending <= 2:  # two after a draft that was accepted whole; more are a prompt
                    seconds.append(time.perf_counter() - began)
                if int(token) in self._ends:
                    break
        if self._draft.other is None:
            session.shorten(input_ids.shape[1] - 1)
        pace.costs.add_drafted(pace.planes, seconds)
        return ids, scores

    def _chosen(self, score: torch.Tensor) -> tuple[torch.Tensor, float]:
        """A token [1, 1] by processed logits [1, V], and the draft's probability of it."""
        probabilities = score.softmax(dim=-1)
        if self._samples:
            token = torch.multinomial(probabilities, num_samples=1)
        else:
            token = score.argmax(dim=-1, keepdim=True)
        return token, float(probabilities[0, token])

    def update_candidate_strategy(
        self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int
    ) -> None:
        """Told after each verification: the tokens with those that were kept, and how many."""
        verified = time.perf_counter()
        count, kept = len(self._confidences), int(num_matches)
        if input_ids.shape[1] - kept - 1 == self._prompt:  # the prefill
            return
        self._draft.add_round(
            self._confidences, kept, self._drafted - self._began, verified - self._drafted
        )
        if count and self._draft.other is not None:
            self._session.shorten(input_ids.shape[1] - 1)
