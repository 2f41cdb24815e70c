// Unleash as its package starts it; settings come by environment from tests/unleash/server.py.
import { start } from 'unleash-server';

await start();
