"""The four steps of gradient descent: forward, loss, backward, update; and the batches they take."""
