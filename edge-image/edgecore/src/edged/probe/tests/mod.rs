mod asking;
mod decisions;
