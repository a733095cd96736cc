throw new TypeError("nothing works");
