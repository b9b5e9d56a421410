"""The page with the orders, in a real browser: it grows, and shows any text as text."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, expect, sync_playwright

from bots.order_window.page import add_order_page
from bots.order_window.store import OrderStore
from tests.helpers.chromium import browsing, needs_chromium

MARKUP = "<img src=x onerror=document.title='run'>"


@pytest.fixture
def url(store: OrderStore) -> Iterator[str]:
    app = FastAPI()
    add_order_page(app, store)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/orders"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    with sync_playwright() as playwright, browsing(playwright) as browser:
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        yield page
    assert problems == []


@pytest.mark.browser
@pytest.mark.realtime
@needs_chromium
def test_the_order_grows_on_the_page(page: Page, store: OrderStore) -> None:
    expect(page.get_by_role("status")).to_have_text("Waiting for the first order.")
    store.add("a", "1", "spicy", 2)
    order = page.locator("article")
    expect(order).to_contain_text("2 Spicy shakshuka")
    expect(order).to_contain_text("$20.50")
    expect(page.get_by_role("heading", name="Jerusalem Shakshuka")).to_be_visible()
    store.add("a", "2", "coffee", 1, "large", MARKUP)
    expect(order).to_contain_text(f"1 large Coffee ({MARKUP})")
    assert page.title() == "Orders", "a note is text, not markup"
    store.place("a")
    expect(order).to_contain_text("placed")
    store.add("b", "1", "tea", 1)
    expect(page.locator("article").first).to_contain_text("Tea")
    expect(page.locator("article")).to_have_count(2)


def test_the_data_name_no_caller(url: str, store: OrderStore) -> None:
    store.add("20260131T120000Z-secret", "1", "tea", 1)
    response = httpx.get(f"{url}/data")
    assert response.json()["orders"][0]["total"] == "$2.25"
    assert "secret" not in response.text
