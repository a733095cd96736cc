export { default } from "a-package-that-is-not-installed";
