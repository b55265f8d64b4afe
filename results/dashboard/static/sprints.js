// The list: "/" leads to the search, and two or more must be chosen to be compared.
const search = document.getElementById("search");
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
  }
});

const form = document.getElementById("compare");
if (form) {
  const button = document.getElementById("compare-button");
  const count = () => {
    const chosen = form.querySelectorAll("input[name=ids]:checked").length;
    button.disabled = chosen < 2;
    button.textContent = chosen < 2 ? "Compare the chosen (two or more)" : `Compare the ${chosen} chosen`;
  };
  form.addEventListener("change", count);
  window.addEventListener("pageshow", count);
  count();
}
