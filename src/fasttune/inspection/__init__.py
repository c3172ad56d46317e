"""What a person is shown of rows and templates before anything is trained."""
