"""A vector for each text: sentence encoders, learned from pairs of texts that belong together or from scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import text_key
from hfadapt.modalities import Example, Row
from hfadapt.modalities.text import pad, tokenised
from hfadapt.schemas import LabelKind
from hfadapt.tasks import Answer, Batches, Scores, Served, Task, unique_parts
from hfadapt.tasks._answers import Cut
from hfadapt.tasks.embedding.search import METRICS, SCALE, Search, order_losses, own_order_losses
from hfadapt.tasks.embedding.sentence import FILES, POOLING, VECTOR, Sentence, through_layers

if TYPE_CHECKING:
    import torch

ALIKE = 0.98
LENGTH = 1e-3
"""By how much the length of a unit vector may differ from 1."""
JAVASCRIPT = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
"""What transformers.js calls ways of pooling; it knows no other."""
EMBEDDED = 32
"""Texts that are answered at once."""


class Embedding(Task):
    """Rows of `anchor` and `positive`: cross-entropy of the positive among all documents of the batch, with cosines
    times 20 as logits (Henderson et al. 2017, arXiv 1705.00652). Rows with a score: CoSENT.

    Negatives are those of the whole optimizer step, however many texts go through the model at once: the gradient of
    the vectors is worked out first (Gao et al. 2021, arXiv 2101.06983).
    """

    name = "embedding"
    title = "sentence embedding"
    pipeline_tag = "sentence-similarity"
    peft_task_type = "FEATURE_EXTRACTION"
    auto_class = "AutoModel"
    schemas = frozenset({"pairs", "scored-pairs"})
    label_kind = "ranks"
    baseline = "base"
    metrics: tuple[str, ...] = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "spearman", "loss")
    own_metrics = METRICS
    joint = True
    alone = True
    compares = gives_vectors = True
    reads = "last_hidden_state"
    file_reads = VECTOR
    library = "sentence-transformers"
    usage = (
        "from sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer(".")  # this folder, or its name on the Hub\n'
        'vectors = model.encode(["one text", "another"])'
    )
    files = FILES
    assumed_parts = 2.0
    defaults = {
        "train.batch_rows": (64, "the other rows of a batch are what each row is told apart from"),
        "train.learning_rate": (2e-4, "a sentence encoder is trained already, and forgets with more"),
    }
    answer_rows = 1 << 20
    meaning = "The vector of a text, to be compared by its cosine."
    reading = "print(out[:4])  # the first numbers of the vector"
    alike_means = f"vectors with a cosine of at least {ALIKE}"
    folder = Path(__file__).parent

    def kind(self, form: str) -> LabelKind:
        """Numbers where rows have a score."""
        schema = registry.schema(form)
        return self.label_kind if schema.label_kind == "none" else schema.label_kind

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """It printed a cosine; of rows with a score the one that the evaluation saw, to rounding in another batch."""
        try:
            value = float(printed)
        except ValueError:
            return False
        return abs(value - prediction) <= 0.01 if isinstance(prediction, float) else -1.01 <= value <= 1.01

    def outputs(self, labels: Sequence[str]) -> int:
        """No head."""
        return 0

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def auto_class_of(self, model_type: str) -> str:
        """Of a model that reads and writes, such as T5, the half that reads."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

        halves = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(model_type, "").endswith("EncoderModel")
        return "AutoModelForTextEncoding" if halves else self.auto_class

    def settings(self, tokenizer: Any) -> dict[str, Any]:
        """How texts become vectors."""
        sentence = Sentence.of(tokenizer)
        auto_class = self.auto_class_of(sentence.model_type)
        return sentence.model_dump(mode="json") | ({} if auto_class == self.auto_class else {"model_class": auto_class})

    def notes(self, tokenizer: Any) -> list[str]:
        """Where the base does not say it."""
        known = Sentence.of(tokenizer).known
        return [] if known else ["the base does not say how tokens become one vector: their mean, with length 1"]

    # --- examples ----------------------------------------------------------------------------------------------------

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Anchor, positive and negatives of each row, or its text alone, with the prompts that the base was made
        with."""
        sentence = Sentence.of(tokenizer)
        scored = [row.get("label") is not None for row in rows]
        prompts = [(sentence.default,) * 2 if own else (sentence.query, sentence.document) for own in scored]
        texts: list[str] = []
        before: list[str] = []
        for row, (query, document) in zip(rows, prompts, strict=True):
            own_texts = _texts_of(row)
            texts += own_texts
            before += [query, *[document] * (len(own_texts) - 1)]
        parts = iter(text_parts(sentence, texts, before, tokenizer, max_length))
        found = []
        for number, row in enumerate(rows):
            keys = list(map(text_key, _texts_of(row)))
            own = [next(parts) for _ in keys]
            target: tuple[Any, ...] = (float(row["label"]),) if scored[number] else (1,)
            found.append(row_example(own, keys, target, number))
        return found

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """All S sequences of the examples: input_ids, attention_mask and what each token counts (`pooling`), (S, T)."""
        import torch

        parts = [part for example in examples for part in example.parts]
        batch = pad(parts, pad_token_id)
        batch["pooling"] = torch.zeros(batch["input_ids"].shape)
        for number, part in enumerate(parts):
            batch["pooling"][number, : part.size] = torch.tensor(part.inputs["pooling"])
        return batch

    # --- learning ----------------------------------------------------------------------------------------------------

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Vectors (S, D) in float32, not normalised but by files that do so."""
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return _vectors(model, output, batch["pooling"])

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands for the loss where rows are looked at one by one: the size of each output. It needs all of the
        model that the loss needs."""
        import torch

        found = self.label_logits(model, batch)
        return found.float().abs().sum(-1), torch.arange(len(found), device=found.device)

    def joint_losses(
        self, outputs: torch.Tensor, examples: Sequence[Example], places: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Of pairs the cross-entropy over all documents, of scored pairs CoSENT; none of texts alone."""
        import torch

        vectors = torch.nn.functional.normalize(outputs.float(), dim=-1)
        if not has_scores(examples):
            pairs = [number for number, own in enumerate(places) if len(own) > 1]
            found = vectors.new_zeros(len(places))
            if pairs:
                search = Search.of([examples[number] for number in pairs], [places[number] for number in pairs])
                found[pairs] = search.losses(search.logits(vectors))
            return found
        targets = torch.tensor([example.labels[0] for example in examples], device=vectors.device)
        return order_losses(_similarities(vectors, places), targets)

    def joint_distances(
        self, outputs: torch.Tensor, reference: torch.Tensor, places: Sequence[Sequence[int]], relations: bool | None
    ) -> torch.Tensor:
        """20 times one minus the cosine with the teacher's vector, so that a student finds what the teacher has filed;
        of vectors of another width, or for `relations`, the divergence of which text of the batch is near."""
        import torch

        alike = outputs.shape[-1] == reference.shape[-1]
        if relations is False and not alike:
            raise RunError(
                "the teacher's vectors are wider or narrower than the student's",
                place="train.objective_options.loss",
                got=f"mse, and {reference.shape[-1]} numbers in place of {outputs.shape[-1]}",
                fix="set it to kl, which compares what is near to what",
            )
        if relations or not alike:
            each = self.divergence(reference, outputs.float())
        else:
            each = SCALE * (1 - torch.nn.functional.cosine_similarity(outputs.float(), reference, dim=-1))
        return torch.stack([each[list(own)].mean() for own in places])

    def divergence(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """KL(reference || other) in nats of which other text of the batch each of S vectors belongs to, (S,)."""
        import torch

        def chances(vectors: torch.Tensor) -> torch.Tensor:
            unit = torch.nn.functional.normalize(vectors, dim=-1)
            itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
            return (SCALE * unit @ unit.T).masked_fill(itself, -1e4).log_softmax(-1)

        return super().divergence(chances(reference), chances(other))

    def alike(self, reference: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A cosine of at least 0.98; every vector is decided."""
        import torch

        cosines = torch.nn.functional.cosine_similarity(reference, other, dim=-1)
        return cosines >= ALIKE, torch.ones(len(reference))

    # --- scoring and answering ---------------------------------------------------------------------------------------

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Ranks of what belongs to each anchor among all documents of the examples; of scored pairs the cosines."""
        import numpy as np
        import torch

        parts, places = unique_parts(examples)
        vectors = torch.nn.functional.normalize(self._all_outputs(model, parts, batches), dim=-1)
        if not has_scores(examples):
            return Search.of(examples, places).scores(vectors)
        gold = np.array([example.labels[0] for example in examples])
        found = _similarities(vectors, places)
        losses = own_order_losses(found, torch.tensor(gold, device=found.device)).cpu().numpy()
        ones = np.ones(len(gold), dtype=np.int64)
        return Scores(gold, found.cpu().double().numpy(), None, losses, ones, "number")

    def _all_outputs(self, model: Any, parts: Sequence[Example], batches: Batches) -> torch.Tensor:
        """What comes out for each sequence, (S, D)."""
        import torch

        outputs: list[torch.Tensor] = []
        order: list[int] = []
        for numbers, batch in batches(parts):
            outputs.append(self.label_logits(model, batch).float())
            order += numbers
        return torch.cat(outputs)[torch.tensor(order).argsort().to(outputs[0].device)]

    def setting(self, examples: Sequence[Example]) -> str | None:
        """Queries and documents."""
        return None if has_scores(examples) else Search.of(examples, unique_parts(examples)[1]).setting

    def for_file(self, model: Any, tokenizer: Any) -> Any:
        """With the vector of each text among the outputs; the hidden states stay, for what pools them itself."""
        from transformers.utils import ModelOutput

        sentence, plain = Sentence.of(tokenizer), model.forward
        if not sentence.include_prompt and (sentence.query or sentence.document or sentence.default):
            raise RunError(
                "what is put before texts does not count in their vectors, and a file cannot tell which tokens it is",
                place=POOLING,
                got="include_prompt: false",
                fix="export it as merged, which sentence-transformers opens",
            )

        @dataclass
        class WithVectors(ModelOutput):
            last_hidden_state: Any = None
            sentence_embedding: Any = None

        def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> WithVectors:
            hidden = plain(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
            return WithVectors(hidden, sentence.vectors(hidden, attention_mask, model))

        model.forward = forward
        return model

    def file_faults(self, model: Any, batch: Mapping[str, torch.Tensor], tokenizer: Any) -> list[str]:
        """Vectors that have another length than 1, which cosines do not show."""
        found = getattr(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]), VECTOR, None)
        if found is None or not Sentence.of(tokenizer).normalise:
            return []
        apart = float((found.float().norm(dim=-1) - 1).abs().max())
        return [] if apart <= LENGTH else [f"its vectors have other lengths than 1, by up to {apart:.3g}"]

    def javascript(self, tokenizer: Any) -> tuple[str, str]:
        """Pooled there, where transformers.js knows the way; else the vectors are the file's second output."""
        sentence = Sentence.of(tokenizer)
        pooling = None if sentence.dense else JAVASCRIPT.get(sentence.pooling)
        normalise = str(sentence.normalise).lower()
        return "feature-extraction", f'{{ pooling: "{pooling}", normalize: {normalise} }}' if pooling else ""

    def write_beside(self, folder: Path, model: Any, tokenizer: Any, max_length: int) -> None:
        """What sentence-transformers needs to open the folder."""
        Sentence.of(tokenizer).write(folder, max_length, int(model.config.get_text_config().hidden_size), tokenizer)

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The vector of each text, and from the second text of an adapter on its cosine with the first.

        The first text is read as a query and the others as documents, where the base tells them apart.
        """
        import torch

        first: dict[Any, int] = {}
        asked = [names[row] if names else each.max_length for row, each in enumerate(served)]
        firsts = [first.setdefault(name, row) for row, name in enumerate(asked)]
        sentence = Sentence.of(served[0].tokenizer)
        cuts: list[Cut | None] = []
        vectors = torch.cat(list(self._embedded(sentence, served, texts, firsts, names, cuts)))
        alike = torch.nn.functional.cosine_similarity(vectors, vectors[firsts], dim=-1).tolist()
        if sentence.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return [
            Answer(text=text, vector=tuple(vector), number=None if row == firsts[row] else alike[row], cut=cuts[row])
            for row, (text, vector) in enumerate(zip(texts, vectors.tolist(), strict=True))
        ]

    def _embedded(
        self,
        sentence: Sentence,
        served: Sequence[Served],
        texts: Sequence[str],
        firsts: Sequence[int],
        names: Sequence[str],
        cuts: list[Cut | None],
    ) -> Iterator[torch.Tensor]:
        import torch

        model, tokenizer = served[0].model, served[0].tokenizer
        for start in range(0, len(texts), EMBEDDED):
            rows = range(start, min(start + EMBEDDED, len(texts)))
            parts = [
                text_parts(
                    sentence,
                    [texts[row]],
                    [sentence.query if row == firsts[row] else sentence.document],
                    tokenizer,
                    served[row].max_length,
                )[0]
                for row in rows
            ]
            cuts += [Cut.of(part.length, part.size) for part in parts]
            batch = {name: part.to(model.device) for name, part in self.collate(parts, served[0].pad_token_id).items()}
            pooling = batch.pop("pooling")
            named = {"adapter_names": [names[row] for row in rows]} if names else {}
            with torch.inference_mode():
                yield _vectors(model, model(**batch, **named), pooling).cpu()


def _vectors(model: Any, output: Any, pooling: torch.Tensor) -> torch.Tensor:
    """Vectors (S, D) of a model's output: those that it has, or its hidden states summed by what each counts (S, T),
    after the layers that lie beside the model."""
    found = getattr(output, VECTOR, None)
    if found is not None:
        return found.float()
    hidden = output.last_hidden_state.float()
    # The fast path may leave the first token alone; it stays only where all that counts is there.
    return through_layers(model, (pooling[:, None, : hidden.shape[1]] @ hidden)[:, 0])


def _texts_of(row: Row) -> list[str]:
    """Anchor, positive and negatives of a row; of a text alone that."""
    return [str(row["anchor"]), *([str(row["positive"])] if row["positive"] else []), *(row.get("negatives") or ())]


def text_parts(
    sentence: Sentence, texts: Sequence[str], prompts: Sequence[str], tokenizer: Any, max_length: int
) -> list[Example]:
    """One sequence for each text, with what each of its tokens counts."""
    whole = [prompt + (text.lower() if sentence.lower else text) for text, prompt in zip(texts, prompts, strict=True)]
    lengths = {prompt: _prompt_tokens(prompt, tokenizer) for prompt in dict.fromkeys(prompts)}
    found = []
    for (ids, length), prompt in zip(tokenised(whole, tokenizer, max_length), prompts, strict=True):
        inputs = {"input_ids": tuple(ids), "pooling": tuple(sentence.weights(len(ids), lengths[prompt]))}
        found.append(Example(inputs, (), len(ids), length, -1))
    return found


def _prompt_tokens(prompt: str, tokenizer: Any) -> int:
    """Tokens that stand before a text, without the one that ends it."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def row_example(parts: Sequence[Example], keys: Sequence[int], target: tuple[Any, ...], number: int) -> Example:
    """A row of several sequences.

    Args:
        keys: What tells the texts of the row apart from those of others.
    """
    flat = tuple(token for part in parts for token in part.inputs["input_ids"])
    inputs = {"input_ids": flat, "parts": tuple(parts), "keys": tuple(keys)}
    size, length = max(part.size for part in parts), max(part.length for part in parts)
    return Example(inputs, target, size, length, number)


def has_scores(examples: Sequence[Example]) -> bool:
    """Whether rows have numbers; else each has something to find."""
    return bool(examples) and isinstance(examples[0].labels[0], float)


def _similarities(vectors: torch.Tensor, places: Sequence[Sequence[int]]) -> torch.Tensor:
    """Cosines of the two texts of each row (N,); vectors have length 1."""
    return (vectors[[own[0] for own in places]] * vectors[[own[1] for own in places]]).sum(-1)


KIND = Embedding()
