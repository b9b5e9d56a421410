"""First names that the agent may have."""

from __future__ import annotations

NAMES = tuple(
    """
Owen Alice Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Maya Aaron Abby Abel Abigail
Adam Adele Adrian Agnes Aidan Alan Albert Alex Alfred Alicia Alma Amanda Amber Amelia Amy Ana
Andrea Andrew Angela Angus Anita Ann Anna Annette Anthony Anton April Archie Arlo Arthur Ashley
Astrid Audrey Austin Ava Barbara Barry Beatrice Becky Bella Benjamin Bernard Beth Betty Beverly
Bill Blake Bob Bonnie Boris Brad Brandon Brenda Brian Bridget Bruce Bruno Caleb Calvin Cameron
Camila Carl Carla Carlos Carmen Carol Caroline Casey Cecil Celia Chad Charles Charlie Charlotte
Chester Chloe Chris Cindy Claire Clark Claude Clay Cleo Clint Cody Colin Connor Cora Craig Crystal
Curtis Cynthia Daisy Dale Damon Dan Dana Daniel Danny Daphne Darren Dave Dean Deborah Dennis Derek
Diana Diego Dominic Don Donna Doris Dorothy Douglas Duncan Dylan Earl Eddie Eden Edgar Edith Edward
Elaine Eleanor Elena Eli Elias Elijah Elizabeth Ella Ellen Elliot Elsa Emil Emily Eric Erin Ernest
Esther Ethan Eugene Eva Evan Evelyn Faith Felix Fiona Flora Florence Frances Fred Freya Gabriel
Gail Gary Gavin Gemma Gene George Gina Glenn Gloria Gordon Graham Greta Gregory Gus Hannah Harold
Harper Harriet Harry Hazel Heather Hector Heidi Helen Holly Hope Howard Hugo Ian Ida Ingrid Irene
Isaac Isabel Ivan Ivy Jacob Jade James Jan Jane Janet Jared Jasmine Jason Jay Jean Jeff Jenny
Jeremy Jerry Jesse Jessica Jill Jim Joan Jodie Joe Joel John Jonah Jordan Joseph Josh Joyce Judith
Jules Julia Julian June Justin Kara Karen Karl Kathleen Kayla Keith Kelly Ken Kevin Kim Kirk Kurt
Kyle Lara Larry Laura Lauren Lena Leon Lewis Liam Lily Linda Lisa Logan Lola Louis Louise Lucas
Lucy Luke Luna Lydia Mabel Marcus Margaret Maria Mark Martha Maurice Maxine Melissa Miranda Molly
Nancy Natalie Neil Nicholas Nicole Nigel Norman Olga Olivia Patricia Patrick Paula Pedro Penny Peter
Philip Rebecca Richard Rita Robert Roger Ryan Sally
""".split()
)
"""Names of the training's prompts."""

HELD_OUT_NAMES = tuple(
    """
Marina Martin Mason Matilda Max Megan Michael Miles Mira Monica Nathan Nina Noah Nora Oliver
Oscar Paul Phoebe Rachel Robin Rosa Ruth Samuel Sarah Simon Sophie Stella Theo Victor Wendy
""".split()
)
"""Names that no prompt of the training has; the agent's recordings and the tokenizer know them."""
