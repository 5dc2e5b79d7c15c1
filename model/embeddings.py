"""Turns the codes of a batch into tokens: every token is the sum of the rows of everything known about it.

    history token      item fields + actions + intensity + contexts + position + age at request
    of kind hstu two   actions + intensity + position + age, then item fields + contexts + position + age
    candidate          item fields + contexts                    never an action: its actions are the labels
    contextual token   the user fields of one configured group

Item and context tables serve all streams, histories and candidates alike; actions, intensity, position and age are a
stream's own. Code 0 of a field (padding, null, unknown) adds nothing. All tokens of a batch come from one lookup.

Legend: B requests, T history tokens, C candidates, N tokens of any kind, F codes of a token, L codes of all tokens.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from features.spec import CategoricalField, FeatureSpec
from kernels.jagged import request_of_rows
from model.batch import Batch, UIHStream
from model.config import ModelConfig
from model.field_rows import Column, FieldRows
from model.tables import EmbeddingTables
from model.tokens import EmbeddedTokens, HistoryTokens, JaggedTokens, TokenRows

# Positions are exact up to 16, then four buckets an octave; ages go by half octaves from one second to two years.
POSITION_EDGES = (*range(1, 16), *(steps << octave for octave in range(2, 18) for steps in (4, 5, 6, 7)))
AGE_EDGES_MS = tuple(int(1000 * 2 ** (half / 2)) for half in range(53))


class TokenEmbeddings(nn.Module):
    """Holds the tables and composes the tokens of a batch."""

    bit_A: Tensor
    group_begin_G: Tensor
    user_columns: Tensor
    position_edges: Tensor
    age_edges: Tensor

    def __init__(
        self, config: ModelConfig, spec: FeatureSpec, *, device: torch.device, tables: EmbeddingTables | None = None
    ) -> None:
        """Lays the tables out.

        Args:
            config: the model.
            spec: of the dataset.
            device: where the tables live.
            tables: those of `table_fields` to look up in, of a served model; new ones to be trained unless given.
        """
        super().__init__()
        self.streams = {name: spec.streams.index(name) for name in config.streams}
        sizes = [len(group) for group in config.contextual]
        group_begin_G = torch.tensor([0, *accumulate(sizes)][: len(sizes)], dtype=torch.int64, device=device)
        self.register_buffer("group_begin_G", group_begin_G, persistent=False)
        self.has_actions = config.action_encoding != "none"
        self.has_intensity = config.action_encoding == "heterogeneous"
        self.tokens_per_event = tokens_per_event(config)
        self.tables = tables or EmbeddingTables(table_fields(config, spec), config.dim, device=device)

        members = [name for group in config.contextual for name in group]
        user_fields = [field.name for field in spec.user_fields]
        self.member_columns = [user_fields.index(name) for name in members]
        user_columns = torch.tensor(self.member_columns, dtype=torch.int64, device=device)
        self.register_buffer("user_columns", user_columns, persistent=False)
        self.user_rows = FieldRows([self._field(f"user.{name}") for name in members], device=device)
        items = [self._field(f"item.{field.name}") for field in spec.item_fields]
        scored = [self._field(f"context.{field.name}") for field in spec.candidate_contexts]
        self.candidate_rows = FieldRows([*items, *scored], device=device)
        events = [*items, *(self._field(f"context.{field.name}") for field in spec.token_contexts)]
        self.history_rows = nn.ModuleDict(
            {name: FieldRows([*events, *self._stream_columns(name)], device=device) for name in self.streams}
        )
        self.register_buffer("bit_A", torch.arange(len(spec.actions), device=device), persistent=False)
        for name, edges in (("position_edges", POSITION_EDGES), ("age_edges", AGE_EDGES_MS)):
            # An edge below all others: buckets are codes, and those begin with 1.
            lowest = torch.iinfo(torch.int64).min
            self.register_buffer(name, torch.tensor([lowest, *edges], device=device), persistent=False)

    def _field(self, name: str) -> Column:
        return Column(name, self.tables.first_row[name], self.tables.sizes[name])

    def _stream_columns(self, stream: str) -> list[Column]:
        """What history tokens have beside their fields: a 0 or 1 per action, and codes from 1 of the stream's own."""
        first_row, sizes = self.tables.first_row, self.tables.sizes
        columns = []
        if self.has_actions:
            name = f"{stream}.action"
            columns += [Column(name, first_row[name] + bit - 1, size=2) for bit in range(sizes[name])]
        if self.has_intensity:
            columns.append(self._field(f"{stream}.intensity"))
        for name in (f"{stream}.position", f"{stream}.age"):
            columns.append(Column(name, first_row[name] - 1, sizes[name] + 1))
        return columns

    def rows(self, batch: Batch) -> TokenRows:
        """Which rows a batch's tokens are sums of; nothing of it depends on the weights.

        Of tables that several ranks share, all of them call this alike.
        """
        candidates = batch.candidates
        rows = [
            self.user_rows(batch.users_BF.index_select(1, self.user_columns)),
            *(
                self.history_rows[name](self._codes(batch.streams[index], batch.request_ms_B))
                for name, index in self.streams.items()
            ),
            self.candidate_rows(torch.cat([candidates.items_CF, candidates.contexts_CX], dim=1)),
        ]
        begins = self._begins(rows)
        end = begins[0].new_full((1,), sum(rows_NF.numel() for rows_NF in rows))
        plan = self.tables.plan(
            torch.cat([rows_NF.flatten() for rows_NF in rows]),
            torch.cat([*begins, end]),
            num_present=self.num_rows(batch),
        )
        return TokenRows(plan, tuple(begin_N.numel() for begin_N in begins))

    def _begins(self, rows: list[Tensor]) -> list[Tensor]:
        """Where each token's rows begin; the first entry holds users, whose columns make a token per group."""
        users_BF, *others = rows
        requests_B = torch.arange(users_BF.shape[0], device=users_BF.device)
        begins = [(requests_B[:, None] * users_BF.shape[1] + self.group_begin_G).flatten()]
        end = users_BF.numel()
        for rows_NF in others:
            begin, end = end, end + rows_NF.numel()
            begins.append(torch.arange(begin, end, rows_NF.shape[1], device=rows_NF.device))
        return begins

    def begin(self, rows: TokenRows) -> TokenRows:
        """Begins the lookup of what `rows` gave, when the tables are up to date; called by all ranks alike."""
        return replace(rows, plan=self.tables.begin(rows.plan))

    def forward(self, batch: Batch, rows: TokenRows | None = None) -> EmbeddedTokens:
        """All tokens of a batch; `rows` are its own, begun, when they were asked for before."""
        rows = rows or self.begin(self.rows(batch))
        streams = {name: batch.streams[index] for name, index in self.streams.items()}
        contextual, *histories, scored = self.tables(rows.plan).split(rows.num_tokens)
        requests_B1 = torch.arange(batch.num_requests + 1, device=batch.users_BF.device)
        return EmbeddedTokens(
            contextual=JaggedTokens(contextual, requests_B1 * self.group_begin_G.numel()),
            histories={
                name: self._history(values_TD, stream)
                for (name, stream), values_TD in zip(streams.items(), histories, strict=True)
            },
            candidates=JaggedTokens(scored, batch.candidates.offsets_B1),
        )

    def num_rows(self, batch: Batch) -> int | None:
        """How many rows a batch's tokens are sums of, None where the host does not know."""
        known = batch.known
        if known is None:
            return None
        total = sum(known.users_F[column] for column in self.member_columns) + known.candidates
        for index in self.streams.values():
            total += known.fields_S[index]
            total += known.actions_S[index] if self.has_actions else 0
            total += known.intensity_S[index] if self.has_intensity else 0
            # Every token has a position and an age.
            total += 2 * self.tokens_per_event * sum(batch.streams[index].lengths)
        return total

    def _history(self, values_TD: Tensor, stream: UIHStream) -> HistoryTokens:
        if self.tokens_per_event == 1:
            return HistoryTokens(values_TD, stream.offsets_B1, stream.lengths)
        lengths = tuple(self.tokens_per_event * length for length in stream.lengths)
        return HistoryTokens(values_TD, stream.offsets_B1 * self.tokens_per_event, lengths)

    def _codes(self, stream: UIHStream, request_ms_B: Tensor) -> Tensor:
        """(T, F) codes of a stream's history tokens, columns as its rows'; (2T, F) with two tokens an event."""
        item = [stream.items_TF, stream.contexts_TX]
        action = self._action_codes(stream)
        time = self._time_codes(stream, request_ms_B)
        if self.tokens_per_event == 1:
            return torch.cat([*item, *action, *time], dim=1)
        # Newest first: what was done comes after the item it was done to, so it lies before it here.
        of_action = torch.cat([*map(torch.zeros_like, item), *action, *time], dim=1)
        of_item = torch.cat([*item, *map(torch.zeros_like, action), *time], dim=1)
        return torch.stack([of_action, of_item], dim=1).flatten(0, 1)

    def _action_codes(self, stream: UIHStream) -> list[Tensor]:
        """Columns of what was done, as much of it as the action encoding tells."""
        codes = []
        if self.has_actions:
            codes.append(((stream.action_mask_T[:, None] >> self.bit_A) & 1).int())
        if self.has_intensity:
            codes.append(stream.intensity_T[:, None])
        return codes

    def _time_codes(self, stream: UIHStream, request_ms_B: Tensor) -> list[Tensor]:
        """Columns of position and age."""
        total = stream.timestamp_ms_T.numel()
        request_T = request_of_rows(stream.offsets_B1, total)
        begin_T = stream.offsets_B1.index_select(0, request_T)
        position_T = torch.arange(total, device=begin_T.device) - begin_T
        age_T = request_ms_B.index_select(0, request_T) - stream.timestamp_ms_T
        return [
            torch.bucketize(position_T, self.position_edges, right=True, out_int32=True)[:, None],
            torch.bucketize(age_T, self.age_edges, right=True, out_int32=True)[:, None],
        ]


def tokens_per_event(config: ModelConfig) -> int:
    """History tokens of one event: HSTU keeps what was done in a token of its own beside the item's."""
    return 2 if config.kind == "hstu" else 1


def table_fields(config: ModelConfig, spec: FeatureSpec) -> tuple[CategoricalField, ...]:
    """Name and rows of each table, in the order in which they are laid out.

    A context that history tokens and candidates both have is one table.
    """
    contexts = {field.name: field.size for field in spec.token_contexts}
    for field in spec.candidate_contexts:
        contexts[field.name] = max(field.size, contexts.get(field.name, 0))
    sizes = {f"item.{field.name}": field.size for field in spec.item_fields}
    members = {name for group in config.contextual for name in group}
    sizes |= {f"user.{field.name}": field.size for field in spec.user_fields if field.name in members}
    sizes |= {f"context.{name}": size for name, size in contexts.items()}
    for stream in config.streams:
        if config.action_encoding != "none":
            sizes[f"{stream}.action"] = len(spec.actions)
        if config.action_encoding == "heterogeneous":
            sizes[f"{stream}.intensity"] = spec.intensity_size
        sizes[f"{stream}.position"] = len(POSITION_EDGES) + 1
        sizes[f"{stream}.age"] = len(AGE_EDGES_MS) + 1
    return tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())
