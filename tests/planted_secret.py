"""Credentials of the test server. They must not reach any file, log or message: tests look for the secret."""

SECRET = "planted-secret-key"
