"""The loops: counting, deciding, actuating, starting and stopping."""
