"""The part of SVG that the charts need: text, boxes, lines, and light and dark colours."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.head { font-weight: 600 }
.dim { fill: #59636e }
.holds { fill: #1a7f37 }
.fails { fill: #c93c37 }
.tao { fill: #d9622b } .peer { fill: #7d9cc0 }
.range { stroke: #1f2328; stroke-width: 1.2; fill: none }
.grid { stroke: #d1d9e0; stroke-width: 1; fill: none }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
.s0 { stroke: #d9622b } .s1 { stroke: #2f6fb3 } .s2 { stroke: #2c9678 } .s3 { stroke: #8a63c4 }
.s4 { stroke: #b08a1e } .d4 { fill: #b08a1e } .s5 { stroke: #c2477f } .d5 { fill: #c2477f }
.d0 { fill: #d9622b } .d1 { fill: #2f6fb3 } .d2 { fill: #2c9678 } .d3 { fill: #8a63c4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .dim { fill: #9aa5b1 }
  .holds { fill: #57c26b }
  .fails { fill: #f47067 }
  .tao { fill: #e8814f } .peer { fill: #57779d }
  .range { stroke: #e6edf3 }
  .grid { stroke: #3d444d }
  .s1 { stroke: #6ca6e0 } .s2 { stroke: #53bfa0 } .s3 { stroke: #b493e6 }
  .d1 { fill: #6ca6e0 } .d2 { fill: #53bfa0 } .d3 { fill: #b493e6 }
  .s4 { stroke: #d9b84a } .d4 { fill: #d9b84a } .s5 { stroke: #e27fae } .d5 { fill: #e27fae }
}
"""


class Drawing:
    """Elements in the order they are drawn; the height is known when all are there."""

    def __init__(self, width: int, label: str) -> None:
        self.width = width
        self.label = label
        self._elements: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """Write words with their baseline at ``y``."""
        self._elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """Draw a filled box."""
        self._elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" '
            f'height="{height:.1f}" rx="2" class="{style}"/>'
        )

    def line(self, points: list[tuple[float, float]], style: str) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{path}" class="{style}"/>')

    def dot(self, x: float, y: float, style: str) -> None:
        """Draw a dot."""
        self._elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{style}"/>')

    def finish(self, height: float) -> str:
        """Return the whole file; its background is transparent."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{height:.0f}" '
            f'viewBox="0 0 {self.width} {height:.0f}" role="img" '
            f"aria-label={quoteattr(self.label)}>"
        )
        return "\n".join([head, f"<style>{STYLE}</style>", *self._elements, "</svg>", ""])
