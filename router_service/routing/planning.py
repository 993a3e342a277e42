"""Plans a request: everybody who could serve it, best first, and everybody who is out, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date

import msgspec

from router_service.domain.candidate import Candidate, Exclusion
from router_service.domain.catalog import ProviderSpec
from router_service.domain.completion import TaskType
from router_service.domain.errors import FailureKind
from router_service.domain.scoring import Facts, Scored, is_surely_first, rank
from router_service.domain.selection import Needs, Selection
from router_service.domain.tenant import Credential, InferenceConfig, Tenant
from router_service.domain.usage import Funding
from router_service.routing.ports import LimitLevels, Prices
from router_service.routing.scoreboard import Block, Scoreboard
from router_service.routing.selections import Selections

MAX_DECISION_LENGTH = 2000
DETAILED = 3  # candidates of a decision that is kept, with the values of their terms
LISTED = 8  # candidates of a decision that is kept


class Plan(msgspec.Struct, frozen=True):
    """Whom to try, in this order, and who is out.

    `blocks` are candidates that only their recent failures keep out; `rejected_key` is the block that decides the
    request at once: the best candidate has a key of the tenant's own that its provider rejected. `is_last_resort`
    says that nobody was free of blocks, so that those whose probe is due are let through.
    """

    tenant: Tenant
    ranked: tuple[Scored, ...]
    exclusions: tuple[Exclusion, ...]
    blocks: tuple[Block, ...] = ()
    rejected_key: Block | None = None
    is_last_resort: bool = False

    def decision(self) -> str:
        """The decision as the ledger keeps it: JSON of at most 2000 characters, without secrets and without the prompt.

        `terms` names the terms and `weights` has their weights, in one order; each entry of `rank` is provider, model,
        who pays, score and, for the first three, the values of the terms; each of `out` is provider, model and reason.
        What does not fit is left out from the end, and `shortened` says so.
        """
        out = [[e.provider, e.model, e.reason] for e in (*self.exclusions, *(b.exclusion for b in self.blocks))]
        for detailed, listed, left_out in ((DETAILED, LISTED, len(out)), (DETAILED, DETAILED, 0), (1, 1, 0)):
            is_shortened = listed < min(LISTED, len(self.ranked)) or left_out < len(out)
            text = self._told(detailed, listed, out[:left_out], is_shortened=is_shortened)
            if len(text) <= MAX_DECISION_LENGTH:
                return text
        return '{"shortened":true}'

    def _told(self, detailed: int, listed: int, out: list[list[str]], *, is_shortened: bool) -> str:
        terms = self.ranked[0].terms if self.ranked else ()
        told: dict[str, object] = {
            "terms": [term.name for term in terms],
            "weights": [term.weight for term in terms],
            "rank": [
                _in_short(scored, with_terms=place < detailed) for place, scored in enumerate(self.ranked[:listed])
            ],
            "out": out,
        }
        if is_shortened:
            told["shortened"] = True
        return msgspec.json.encode(told).decode()


class Planner:
    """Puts the tenant's configuration, the catalogue and what is known of the candidates together."""

    def __init__(
        self,
        *,
        catalog: Mapping[str, ProviderSpec],
        system_credentials: Mapping[str, Credential],
        prices: Prices,
        limits: LimitLevels,
        scoreboard: Scoreboard,
        score_weights: Mapping[str, float],
        today: Callable[[], date],
    ) -> None:
        self._selections = Selections(catalog, system_credentials)
        self._prices = prices
        self._limits = limits
        self._scoreboard = scoreboard
        self._score_weights = score_weights
        self._today = today

    def plan(
        self,
        tenant: Tenant,
        needs: Needs,
        task: TaskType,
        *,
        now: float,
        remaining_s: float | None,
        luck: Callable[[], float],
        ranks_all: bool = False,
    ) -> Plan:
        """Plan a request at `now`. `luck` gives a number from 0 to 1 for each candidate.

        Where a rejected key is sure to refuse the request, nobody is ranked, unless `ranks_all` asks for it.
        """
        selection = self._selections.of(tenant, needs, self._today())
        refused = self._of_a_resting_only_candidate(tenant, selection, now)
        if refused is not None:
            return refused
        rejected = None if ranks_all else self._rejected_key(tenant, selection, task, now, remaining_s)
        if rejected is not None:
            return Plan(tenant, (), selection.exclusions, (rejected,), rejected)
        facts = [self._facts(tenant, candidate, now, luck()) for candidate in selection.candidates]
        config = tenant.config
        ranked = rank(
            facts,
            task=task,
            preferred_provider=config.preferred_provider,
            weights=self._weights_of(config),
            remaining_s=remaining_s,
            preference_is_strict=not config.auto_failover,
        )
        if not config.auto_failover:
            ranked, selection = _only_the_best(ranked, selection)
        return self._without_blocked(tenant, ranked, selection, now)

    def _rejected_key(
        self, tenant: Tenant, selection: Selection, task: TaskType, now: float, remaining_s: float | None
    ) -> Block | None:
        """The `rejected_key` of the plan where that is certain without ranking; None says nothing.

        It is certain of the preferred candidate where the preference outweighs all else. Whoever goes on sending with
        a rejected key comes this way, in a quarter of the time that four candidates take to be ranked.
        """
        candidates, config = selection.candidates, tenant.config
        first = next((each for each in candidates if each.provider == config.preferred_provider), None)
        if first is None or len(candidates) == 1:
            return None  # the plan of an only candidate is short already
        block = self._scoreboard.block(first, now, is_only_candidate=False)
        if block is None or not _is_rejected_own_key(block):
            return None
        if not is_surely_first(
            self._facts(tenant, first, now, luck=0.0),
            task=task,
            preferred_provider=config.preferred_provider,
            weights=self._weights_of(config),
            remaining_s=remaining_s,
            preference_is_strict=not config.auto_failover,
        ):
            return None
        others = [each for each in candidates if each is not first] if config.auto_failover else []
        if any(self._scoreboard.block(each, now, is_only_candidate=False) is None for each in others):
            return block
        block = self._scoreboard.block(first, now, is_only_candidate=True)
        return block if block is not None and _is_rejected_own_key(block) else None

    def _of_a_resting_only_candidate(self, tenant: Tenant, selection: Selection, now: float) -> Plan | None:
        """The plan where there is one candidate and it is kept out, which no score can change; None for all others.

        In a sixth of the time of the whole way.
        """
        if len(selection.candidates) != 1:
            return None
        block = self._scoreboard.block(selection.candidates[0], now, is_only_candidate=True)
        if block is None:
            return None
        rejected = block if _is_rejected_own_key(block) else None
        return Plan(tenant, (), selection.exclusions, (block,), rejected, is_last_resort=True)

    def _weights_of(self, config: InferenceConfig) -> Mapping[str, float]:
        if not config.score_weights:
            return self._score_weights
        return {**self._score_weights, **config.score_weights}

    def _facts(self, tenant: Tenant, candidate: Candidate, now: float, luck: float) -> Facts:
        headroom = self._limits.headroom(tenant.id, candidate.provider, candidate.model.name)
        return Facts(
            candidate,
            health=self._scoreboard.health(candidate).at(now),
            price_usd_per_million=self._prices.usd_per_million(candidate.provider, candidate.model.name),
            limit_remaining_ratio=headroom.remaining_ratio if headroom is not None else None,
            key_remaining_ratio=self._scoreboard.quota_ratio(candidate, now),
            trouble=self._scoreboard.trouble(candidate, now),
            should_failover=headroom is not None and headroom.should_failover,
            luck=luck,
        )

    def _without_blocked(self, tenant: Tenant, ranked: list[Scored], selection: Selection, now: float) -> Plan:
        free, blocks = self._part(ranked, now, is_only_candidate=False)
        is_last_resort = not free
        if is_last_resort:
            free, blocks = self._part(ranked, now, is_only_candidate=True)
        rejected = next((block for block in blocks if block.candidate is ranked[0].candidate), None)
        if rejected is not None and not _is_rejected_own_key(rejected):
            rejected = None
        return Plan(tenant, tuple(free), selection.exclusions, tuple(blocks), rejected, is_last_resort)

    def _part(self, ranked: list[Scored], now: float, *, is_only_candidate: bool) -> tuple[list[Scored], list[Block]]:
        free: list[Scored] = []
        blocks: list[Block] = []
        for scored in ranked:
            block = self._scoreboard.block(scored.candidate, now, is_only_candidate=is_only_candidate)
            if block is None:
                free.append(scored)
            else:
                blocks.append(block)
        return free, blocks


def _in_short(scored: Scored, *, with_terms: bool) -> list[object]:
    candidate = scored.candidate
    head: list[object] = [candidate.provider, candidate.model.name, candidate.funding or "", round(scored.score, 3)]
    return [*head, [round(term.value, 3) for term in scored.terms]] if with_terms else head


def _is_rejected_own_key(block: Block) -> bool:
    credential = block.candidate.credential
    is_own = credential is not None and credential.funding is Funding.TENANT_KEY
    return is_own and block.kind is FailureKind.KEY_REJECTED


def _only_the_best(ranked: list[Scored], selection: Selection) -> tuple[list[Scored], Selection]:
    passed_over = tuple(
        Exclusion(
            scored.candidate.provider,
            scored.candidate.model.name,
            "FAILOVER_OFF",
            "only the best candidate is used: set auto_failover to use this one too",
        )
        for scored in ranked[1:]
    )
    return ranked[:1], Selection(selection.candidates, selection.exclusions + passed_over)
