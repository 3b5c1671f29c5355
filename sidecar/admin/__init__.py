"""Management: REST API, OpenAPI document, web page."""
