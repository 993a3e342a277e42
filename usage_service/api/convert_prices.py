"""Prices, reprices and adjustments as they stand in answers."""

from __future__ import annotations

from decimal import Decimal

from turnpike.usage.v1 import pricing_service_pb2 as pb
from turnpike.usage.v1 import token_usage_pb2
from usage_service.api.convert_reports import timestamp_to_proto, usd_to_text
from usage_service.domain.pricing import ListedPrice, at_answer_precision
from usage_service.domain.repricing import Adjustment
from usage_service.metering.pricing import PriceSet, Quote
from usage_service.metering.repricing import RepriceJob, RepriceProgress


def quote_to_proto(quote: Quote) -> pb.CalculateCostResponse:
    """A cost with its parts and its price, or that there is none."""
    if quote.cost is None or quote.listed is None:
        return pb.CalculateCostResponse(pricing_state=token_usage_pb2.PRICING_STATE_UNPRICED)
    return pb.CalculateCostResponse(
        cost_usd=answer_to_text(quote.cost.total_usd),
        input_cost_usd=answer_to_text(quote.cost.input_usd),
        output_cost_usd=answer_to_text(quote.cost.output_usd),
        pricing_state=token_usage_pb2.PRICING_STATE_PRICED,
        price=price_to_proto(quote.listed),
    )


def price_to_proto(listed: ListedPrice) -> pb.Price:
    """An entry of the price book."""
    price, rates = listed.price, listed.price.rates
    message = pb.Price(
        price_id=_known_id(price.price_id),
        provider=price.provider,
        model=price.model,
        input_usd_per_million=_plain(rates.input_usd),
        output_usd_per_million=_plain(rates.output_usd),
        cached_read_usd_per_million=_plain(rates.cached_read_usd),
        cached_write_usd_per_million=_plain(rates.cached_write_usd),
        reasoning_usd_per_million=_plain(rates.reasoning_usd),
        source=price.source,
        max_prompt_tokens=rates.max_prompt_tokens or 0,
        effective_time=timestamp_to_proto(price.effective_at),
    )
    if listed.expires_at is not None:
        message.expire_time.CopyFrom(timestamp_to_proto(listed.expires_at))
    if listed.replaced_at is not None:
        message.replace_time.CopyFrom(timestamp_to_proto(listed.replaced_at))
    return message


def price_set_to_proto(price_set: PriceSet) -> pb.SetPriceResponse:
    """A price as it stands after it was set."""
    replaced = price_set.replaced
    return pb.SetPriceResponse(
        price=price_to_proto(price_set.listed),
        created=price_set.created,
        replaced=None if replaced is None else price_to_proto(ListedPrice(replaced, price_set.listed.expires_at)),
        reprice_needed=price_set.reprice_needed,
    )


def progress_to_proto(job: RepriceJob, progress: RepriceProgress) -> pb.RepriceResponse:
    """What one call of a run did, without the token of the next."""
    summary = progress.summary
    return pb.RepriceResponse(
        job_id=str(job.job_id),
        applied=job.apply,
        scanned_rows=summary.scanned_rows,
        changed_rows=summary.changed_rows,
        newly_priced_rows=summary.newly_priced_rows,
        newly_unpriced_rows=summary.newly_unpriced_rows,
        unpriced_rows=summary.unpriced_rows,
        old_cost_usd=usd_to_text(summary.old_cost_usd),
        new_cost_usd=usd_to_text(summary.new_cost_usd),
        delta_usd=usd_to_text(summary.delta_usd),
    )


def adjustment_to_proto(adjustment: Adjustment) -> pb.CostAdjustment:
    """One correction of one attempt."""
    return pb.CostAdjustment(
        event_id=str(adjustment.event_id),
        usage_time=timestamp_to_proto(adjustment.used_at),
        revision=adjustment.revision,
        provider=adjustment.provider,
        model=adjustment.model,
        old_cost_usd=_known_usd(adjustment.old_cost_usd),
        old_price_id=_known_id(adjustment.old_price_id),
        new_cost_usd=_known_usd(adjustment.new_cost_usd),
        new_price_id=_known_id(adjustment.new_price_id),
        delta_usd=usd_to_text(adjustment.delta_usd),
        reason=adjustment.reason,
        job_id=str(adjustment.job_id),
        create_time=timestamp_to_proto(adjustment.created_at),
    )


def answer_to_text(usd: Decimal) -> str:
    """US dollars with the 6 decimals of an answer."""
    return f"{at_answer_precision(usd):f}"


def _plain(usd_per_million: Decimal | None) -> str:
    """A price without trailing zeros or an exponent; '' when there is none."""
    if usd_per_million is None:
        return ""
    text = f"{usd_per_million:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _known_id(price_id: int | None) -> str:
    return "" if price_id is None else str(price_id)


def _known_usd(amount: Decimal | None) -> str:
    return "" if amount is None else usd_to_text(amount)
