"""The plugins that come with fasttune, in the form a user's own plugin has."""
