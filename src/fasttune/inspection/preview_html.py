"""The former place of `to_html`."""

from fasttune.inspection.preview import to_html as to_html
