"""`POST /tokenize`: what a request would cost, without running it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from qvl.serve.conversation import Conversation, Cost
from qvl.serve.plans import AnswerPlan, check_plan
from qvl.serve.protocol.completions import TokenizeRequest
from qvl.serve.routes.api import FAILURES, Api, api_of
from qvl.serve.tools import described

router = APIRouter(tags=["answers"])


@router.post("/tokenize", summary="Count the tokens of a request", responses=FAILURES)
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """``count`` tokens in all, those of each picture, video and page, and how many the context has left:
    0 or less where media make the prompt too long. A text that is too long by itself is an error."""
    api = api_of(request)
    api.check_model(body.model)
    cost = await _cost(api, body)
    return await asyncio.to_thread(_answer, api, body, cost)


async def _cost(api: Api, body: TokenizeRequest) -> Cost:
    if body.messages is None:
        return Cost(tuple(await asyncio.to_thread(api.conversations.text_ids, body.prompt or "")))
    plan = AnswerPlan(tuple(body.tools or ()), body.tool_choice)
    check_plan(plan, api.settings.limits)
    return await api.conversations.cost(
        Conversation(
            body.messages,
            described(() if plan.choice == "none" else plan.tools),
            body.mm_processor_kwargs,
            body.add_generation_prompt is not False,
            bool(body.continue_final_message),
            body.chat_template_kwargs or {},
        )
    )


def _answer(api: Api, body: TokenizeRequest, cost: Cost) -> dict[str, Any]:
    count, context = len(cost.token_ids), api.conversations.context
    answer: dict[str, Any] = {
        "count": count,
        "max_model_len": context,
        "left": context - count,
        "media": [
            {
                "where": request.where,
                "kind": one.kind,
                "tokens": one.tokens,
                "width": one.width,
                "height": one.height,
                "resized_width": one.resized_width,
                "resized_height": one.resized_height,
                "frames": one.frames or None,
                "seconds": one.seconds or None,
                "fps": one.sampled_fps or None,
            }
            for request, costs in cost.media
            for one in costs
        ],
        "tokens": list(cost.token_ids) if body.return_tokens is not False else None,
    }
    if body.return_token_strs:
        answer["token_strs"] = [api.data(token) for token in cost.token_ids]
    return answer
