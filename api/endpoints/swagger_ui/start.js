// Shows the API's own description. Addresses are relative: a proxy may have put the service below a path.
SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  oauth2RedirectUrl: new URL("docs/oauth2-redirect", document.baseURI).href,
  validatorUrl: null, // else the description goes to another host for its opinion
});
