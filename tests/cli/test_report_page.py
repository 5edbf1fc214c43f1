"""Rules of the report's page, checked in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cli.report import Cluster, Reject, Report, write_report

pytestmark = pytest.mark.browser

ReportOf = Callable[..., Report]
ClusterOf = Callable[..., Cluster]

HOSTILE_NAMES = (
    "</script><script>window.hacked = 1</script>.jpg",
    "<img src=x onerror='window.hacked = 1'>.jpg",
    '"><svg onload="window.hacked = 1">.jpg',
    "<!--<script>\u2028.jpg",
    "line\nbreak\u202egpj.exe",
    "{{ 7 * 7 }}&lt;b&gt;.jpg",
    "undecodable-\udcff.jpg",
)


@dataclass
class Opener:
    """Opens reports in fresh pages and records everything the browser complains about or asks for."""

    browser: Browser
    folder: Path
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __call__(self, report: Report, *, width: int = 1280, height: int = 900) -> Page:
        target = self.folder / "report.html"
        write_report(report, target)
        page = self.browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(target.as_uri())
        return page


@pytest.fixture
def open_report(chromium: Browser, tmp_path: Path) -> Iterator[Opener]:
    """`open_report(report)`: a page that shows it; after the test, nothing was complained about or fetched."""
    opener = Opener(chromium, tmp_path)
    yield opener
    for context in chromium.contexts:
        context.close()
    assert opener.complaints == []
    assert [url for url in opener.requests if not url.startswith(("data:", tmp_path.as_uri()))] == []


def test_clusters_are_shown_with_their_canonical_first(open_report: Opener, report_of: ReportOf) -> None:
    """Each cluster shows its size, its images by name, score and dimensions, and marks the canonical one."""
    page = open_report(report_of())

    expect(page.locator(".cluster h2")).to_have_text(["3 images", "2 images"])
    first = page.locator(".cluster").first.locator(".member")
    expect(first.locator(".name")).to_have_text(["beach.jpg", "beach_small.jpg", "beach_gray.jpg"])
    expect(first.locator(".badge, .score")).to_have_text(["Canonical", "0.990", "0.980"])
    expect(first.first.locator(".facts")).to_have_text("1200 × 800 · 340 kB")
    expect(page.locator("#found")).to_have_text("2 clusters")


def test_thumbnails_are_decoded_and_described(open_report: Opener, report_of: ReportOf) -> None:
    """Every thumbnail is drawn and has an alternative text."""
    page = open_report(report_of())
    page.wait_for_function("[...document.images].every((image) => image.complete)")

    assert page.evaluate("[...document.images].map((image) => image.naturalWidth)") == [40] * 5
    assert page.locator("img").nth(0).get_attribute("alt") == "beach.jpg, the canonical image"
    assert page.locator("img").nth(1).get_attribute("alt") == "beach_small.jpg, score 0.990"


def test_images_without_a_thumbnail_have_a_placeholder(open_report: Opener, report_of: ReportOf) -> None:
    """Where there is no thumbnail, a neutral box says so."""
    page = open_report(report_of(thumbnail=lambda _: None))

    expect(page.locator(".placeholder")).to_have_count(5)
    expect(page.get_by_label("beach.jpg, no preview")).to_be_visible()
    assert page.locator("img").count() == 0


def test_hostile_names_are_only_text(open_report: Opener, report_of: ReportOf, cluster_of: ClusterOf) -> None:
    """No file name, wherever it is shown, runs a script, adds an element or hides what it is."""
    page = open_report(
        report_of(
            title=HOSTILE_NAMES[1],
            source=HOSTILE_NAMES[0],
            parameters={name: name for name in HOSTILE_NAMES},
            clusters=[cluster_of(*HOSTILE_NAMES)],
            rejects=[Reject(image_id=name, reason=name, detail=name) for name in HOSTILE_NAMES],
        )
    )
    page.locator(".thumbnail").nth(1).click()
    page.keyboard.press("Escape")
    page.locator("nav.tabs a[href='#rejected']").click()
    for summary in page.locator("summary").all():
        summary.click()
    expect(page.locator("tbody bdi", has_text="onerror").first).to_be_visible()

    assert page.evaluate("window.hacked") is None
    assert page.locator(".member img").count() == len(HOSTILE_NAMES)
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], img:not([src^=\"data:\"])').length") == 0
    assert "line‹U+000A›break‹U+202E›gpj.exe" in page.locator(".name").all_text_contents()
    assert "{{ 7 * 7 }}&lt;b&gt;.jpg" in page.locator(".name").all_text_contents()


def test_policy_stops_scripts_and_requests(chromium: Browser, report_of: ReportOf, tmp_path: Path) -> None:
    """Even markup that got in could neither run nor fetch: the page's policy forbids it."""
    opener = Opener(chromium, tmp_path)
    page = opener(report_of())
    refused = page.evaluate(
        """async () => {
          const refused = [];
          document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
          const image = "<img src='https://a.example/x.png' onerror='window.hacked = 1'>";
          document.body.insertAdjacentHTML("beforeend", image);
          const script = document.createElement("script");
          script.textContent = "window.hacked = 1";
          document.body.append(script);
          await fetch("https://a.example/").catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 100));
          return refused.sort();
        }"""
    )

    assert refused == ["connect-src", "img-src", "script-src-attr", "script-src-elem"]
    assert page.evaluate("window.hacked") is None
    page.close()


def test_ten_thousand_images_build_only_one_page(
    open_report: Opener, report_of: ReportOf, cluster_of: ClusterOf
) -> None:
    """With 10,000 images in 2,000 clusters only the shown page has elements, on the first page and the last."""
    clusters = [cluster_of(*(f"{number:04d}_{copy}.jpg" for copy in range(5))) for number in range(2000)]
    page = open_report(report_of(clusters=clusters, num_clusters=2000))

    expect(page.locator("#num-pages")).to_have_text("84")
    assert page.locator(".cluster").count() == 24
    assert page.evaluate("document.querySelectorAll('*').length") < 2500

    page.locator("#page").fill("84")
    page.keyboard.press("Enter")

    expect(page.locator(".cluster .number").last).to_have_text("#2,000")
    assert page.locator(".cluster").count() == 8
    assert page.locator("#next").is_disabled()
    assert page.evaluate("document.querySelectorAll('*').length") < 2500


def test_large_clusters_open_on_demand(open_report: Opener, report_of: ReportOf, cluster_of: ClusterOf) -> None:
    """A large cluster shows twelve images, then all that the page holds, and says how many it does not hold."""
    page = open_report(report_of(clusters=[cluster_of(*(f"{place:03d}.jpg" for place in range(150)), size=4000)]))

    expect(page.locator(".member")).to_have_count(12)
    page.get_by_role("button", name="Show 88 more").click()
    expect(page.locator(".member")).to_have_count(100)
    expect(page.locator("p.more")).to_have_text("3,900 more images are in the clusters table only.")


def test_filter_finds_file_names(open_report: Opener, report_of: ReportOf, cluster_of: ClusterOf) -> None:
    """The filter keeps clusters in which one image has all the words, and brings that image to the front."""
    clusters = [cluster_of("Strand.jpg", "a.jpg", "STRAND klein.jpg"), cluster_of("Strand 2.jpg", "klein.jpg")]
    page = open_report(report_of(clusters=clusters))

    page.locator("#query").fill("klein strand")
    expect(page.locator("#found")).to_have_text("1 of 2 clusters")
    expect(page.locator(".name")).to_have_text(["Strand.jpg", "STRAND klein.jpg", "a.jpg"])
    expect(page.locator(".cluster .number")).to_have_text("#1")

    page.locator("#query").fill("nowhere")
    expect(page.locator("#no-clusters")).to_have_text("No cluster fits this filter.")

    page.locator("#query").fill("")
    expect(page.locator(".cluster")).to_have_count(2)


def test_filter_by_size_keeps_large_clusters(open_report: Opener, report_of: ReportOf) -> None:
    """Only clusters of at least the chosen size stay."""
    page = open_report(report_of())
    page.locator("#least").select_option("3")

    expect(page.locator(".cluster h2")).to_have_text(["3 images"])


def test_keyboard_reaches_the_comparison(open_report: Opener, report_of: ReportOf) -> None:
    """An image opens beside its canonical image with Enter, the arrows move on, Escape returns to where it was."""
    page = open_report(report_of())
    page.locator(".thumbnail").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#comparison figure .label")).to_have_text(["Canonical", "Near-duplicate"])
    expect(page.locator("#comparison-title")).to_have_text("beach_small.jpg")

    page.keyboard.press("ArrowRight")
    expect(page.locator("#comparison-title")).to_have_text("beach_gray.jpg")
    assert page.locator("#pair a").last.get_attribute("href") == "file:///photos/beach_gray.jpg"

    page.keyboard.press("Escape")
    expect(page.locator("#comparison")).to_be_hidden()
    assert page.evaluate("document.activeElement === document.querySelectorAll('.thumbnail')[1]")

    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"


def test_parts_are_reached_by_their_links(open_report: Opener, report_of: ReportOf) -> None:
    """Each link of the navigation shows its part alone, and the browser's back button returns."""
    page = open_report(report_of(rejects=[Reject(image_id="a.jpg", reason="empty", detail="0 bytes")], num_rejected=1))
    for part in ("scores", "rejected", "run", "clusters"):
        page.locator(f"nav.tabs a[href='#{part}']").click()
        expect(page.locator(f"#{part}")).to_be_visible()
        assert page.locator("main > section:visible").evaluate_all("parts => parts.map(part => part.id)") == [part]
    page.go_back()

    expect(page.locator("#run")).to_be_visible()


def test_rejects_unfold_by_reason(open_report: Opener, report_of: ReportOf) -> None:
    """A reason shows its count, and when opened each image with its detail."""
    rejects = [Reject(image_id=f"{name}.jpg", reason="too_many_pixels", detail="50,000 x 50,000") for name in "ab"]
    page = open_report(report_of(rejects=rejects, num_rejected=2))
    page.locator("nav.tabs a[href='#rejected']").click()
    expect(page.locator("summary")).to_have_text("too many pixels2")
    page.locator("summary").click()

    expect(page.locator("details tbody tr")).to_have_text(["a.jpg50,000 x 50,000", "b.jpg50,000 x 50,000"])


def test_threshold_is_drawn_into_the_histogram(open_report: Opener, report_of: ReportOf) -> None:
    """The histogram has a bar for each bin with pairs, labelled axes and the threshold's line between them."""
    page = open_report(report_of())
    page.locator("nav.tabs a[href='#scores']").click()

    expect(page.locator(".threshold text")).to_have_text("threshold 0.79")
    expect(page.locator(".chart .axis-title")).to_have_text(["score", "pairs (log scale)"])
    assert page.locator(".accepted-side .bar").count() == 10
    line = page.locator(".threshold line").bounding_box()
    axis = page.locator(".chart .axis").bounding_box()
    assert line is not None
    assert axis is not None
    assert (line["x"] - axis["x"]) / axis["width"] == pytest.approx((0.79 - 0.5) / 0.5, abs=0.01)


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_nothing_is_wider_than_the_screen(
    open_report: Opener, report_of: ReportOf, cluster_of: ClusterOf, width: int
) -> None:
    """From a small phone to a desktop no part of the page scrolls sideways, however long the names."""
    long_name = "x" * 300 + ".jpg"
    page = open_report(
        report_of(
            source=f"/photos/{long_name}",
            parameters={"workspace": long_name},
            clusters=[cluster_of(*[long_name] * 8), cluster_of(long_name, long_name)],
            rejects=[Reject(image_id=long_name, reason="empty", detail=long_name)],
        ),
        width=width,
    )
    for part in ("clusters", "scores", "rejected", "run"):
        page.evaluate(f"location.hash = '#{part}'")
        expect(page.locator(f"#{part}")).to_be_visible()
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, part


def test_empty_report_says_so(open_report: Opener, report_of: ReportOf) -> None:
    """Where nothing was found or rejected, the page says that instead of showing empty boxes."""
    page = open_report(report_of(clusters=[], num_clusters=0, num_duplicates=0))

    expect(page.locator("#no-clusters")).to_have_text("No near-duplicates were found.")
    expect(page.locator("#filters")).to_be_hidden()
    page.locator("nav.tabs a[href='#rejected']").click()
    expect(page.locator("#rejected")).to_contain_text("Every image could be read.")
