"""From a template's rendering to chat templates for programs that do not know the plugin."""
