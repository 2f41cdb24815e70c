// A certified OpenID Connect provider on loopback. Whoever signs in as NAME is NAME@example.org;
// every password is right. Arguments: the directory of its packages, the port, and the address that
// people come back to.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [directory, port, redirect] = process.argv.slice(2);
const require = createRequire(`${directory}/package.json`);
const { Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const GROUPS = { rita: ["release-managers"], otto: ["operators", "others"] };
const client = {
  client_id: "rolloutd",
  client_secret: "a secret: with/odd+characters",
  redirect_uris: [redirect],
  grant_types: ["authorization_code"],
  response_types: ["code"],
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["groups"] },
  pkce: { required: () => true },
  cookies: { keys: ["a key of this test alone"] },
  findAccount: async (_, id) => ({
    accountId: id,
    claims: async () => ({
      sub: id,
      email: `${id}@example.org`,
      email_verified: id !== "eve",
      groups: GROUPS[id] ?? [],
    }),
  }),
});
provider.on("server_error", (_, error) => console.error(error));
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
